"""Who may do what: the one gate that every operation of every home passes."""
