"""`deltahub serve`: the protocol of the Hugging Face Hub, and a web page, over a registry."""
