"""What tools answer: typed, small, with what to do next. One file for each kind of thing that is answered about."""
