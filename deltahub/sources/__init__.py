"""Sources of deltas: registries, hubs that speak the Hugging Face protocol, and URLs."""
