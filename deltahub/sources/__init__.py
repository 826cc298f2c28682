"""Where deltas come from: registries, hubs that speak the Hugging Face protocol, and URLs."""
