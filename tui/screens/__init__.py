"""One screen a file: what is shown together and what its keys do."""
