"""Which class a name stands for, where its source is, and what settings it has."""
