from broker_native.writing import RecordWriter

class PublishChannels(RecordWriter):
    channels_max: int
    def refuse_channel(self, number: int, failure: BaseException) -> None: ...
