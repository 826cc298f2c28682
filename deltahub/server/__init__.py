"""`deltahub serve`: the Hugging Face Hub protocol and web pages over a registry."""
