"""What exists: model cards, versions and the store that holds them."""
