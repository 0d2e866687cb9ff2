from broker_native.delayed import Waiting
from broker_native.publisher import Publisher

def schedule_frames(
    waiting: Waiting,
    publisher: Publisher,
    frames: bytes,
    now_us: int,
    due_us_min: int,
    due_us_max: int,
    cursor_s: int,
    ticket: int,
) -> tuple[int, int, list[tuple[int, int, bytes, int, int]], bytes]: ...
