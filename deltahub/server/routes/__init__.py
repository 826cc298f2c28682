"""The routes of the Hugging Face Hub's protocol."""
