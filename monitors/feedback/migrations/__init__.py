"""How the tables came to be what they are: each change of them is a revision."""
