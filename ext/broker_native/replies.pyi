from broker_native.publisher import Publisher

def reply_frame(
    publisher: Publisher, body: bytes, at: int, number: int, count: int, time_us: int, payload_bytes_max: int
) -> bytes | int: ...
