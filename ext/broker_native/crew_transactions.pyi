VERB: int
