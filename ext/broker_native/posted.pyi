FRAME_BYTES: dict[str, int]
