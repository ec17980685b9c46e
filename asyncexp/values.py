"""One codec a column type: the user's value, its canonical form, and what the database gives back."""
