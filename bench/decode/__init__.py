"""How texts are generated."""
