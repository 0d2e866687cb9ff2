class RecordWriter:
    payload_bytes_max: int
    headers_bytes_max: int
