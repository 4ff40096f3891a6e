"""How much a subject may ask for: the rules, who counts, and what happens when nobody can."""
