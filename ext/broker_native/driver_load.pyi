FAILURES: tuple[str, ...]
