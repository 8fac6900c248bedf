"""The torch side: recipes, networks, samples, losses, fit, and export to a bundle."""
