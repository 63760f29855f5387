"""Models behind HTTP endpoints: two APIs, and all that is learnt of those who offer them."""
