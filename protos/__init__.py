"""The contracts and the tools that generate code and documents from them."""
