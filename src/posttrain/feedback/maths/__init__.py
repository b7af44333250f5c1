"""Mathematics: which answer a response ends on, and whether it is the same as the reference."""
