"""`orchestra doctor`: looks at a whole installation and says what is open in it, with the mend of each."""
