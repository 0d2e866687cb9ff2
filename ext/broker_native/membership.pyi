from broker_native.jobs import Jobs

class Membership:
    number: int
    waits: bool
    jobs: Jobs | None

    def on_settled(self) -> None: ...
