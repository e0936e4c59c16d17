from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CallRetType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALL_RET_NO_REPLY: _ClassVar[CallRetType]
    CALL_RET_REPLY: _ClassVar[CallRetType]
    CALL_RET_ERR: _ClassVar[CallRetType]

class TelemetryLogLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_ERROR: _ClassVar[TelemetryLogLevel]
    LOG_WARN: _ClassVar[TelemetryLogLevel]
    LOG_INFO: _ClassVar[TelemetryLogLevel]
    LOG_DEBUG: _ClassVar[TelemetryLogLevel]
    LOG_TRACE: _ClassVar[TelemetryLogLevel]
CALL_RET_NO_REPLY: CallRetType
CALL_RET_REPLY: CallRetType
CALL_RET_ERR: CallRetType
LOG_ERROR: TelemetryLogLevel
LOG_WARN: TelemetryLogLevel
LOG_INFO: TelemetryLogLevel
LOG_DEBUG: TelemetryLogLevel
LOG_TRACE: TelemetryLogLevel

class InstanceId(_message.Message):
    __slots__ = ("node_id", "function_id")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    function_id: str
    def __init__(self, node_id: _Optional[str] = ..., function_id: _Optional[str] = ...) -> None: ...

class EventSerializedMetadata(_message.Message):
    __slots__ = ("trace_id", "span_id")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    trace_id: bytes
    span_id: bytes
    def __init__(self, trace_id: _Optional[bytes] = ..., span_id: _Optional[bytes] = ...) -> None: ...

class BootData(_message.Message):
    __slots__ = ("guest_api_host_endpoint", "instance_id", "token")
    GUEST_API_HOST_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    guest_api_host_endpoint: str
    instance_id: InstanceId
    token: str
    def __init__(self, guest_api_host_endpoint: _Optional[str] = ..., instance_id: _Optional[_Union[InstanceId, _Mapping]] = ..., token: _Optional[str] = ...) -> None: ...

class FunctionInstanceInit(_message.Message):
    __slots__ = ("init_payload", "serialized_state")
    INIT_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SERIALIZED_STATE_FIELD_NUMBER: _ClassVar[int]
    init_payload: str
    serialized_state: bytes
    def __init__(self, init_payload: _Optional[str] = ..., serialized_state: _Optional[bytes] = ...) -> None: ...

class InputEventData(_message.Message):
    __slots__ = ("src", "msg")
    SRC_FIELD_NUMBER: _ClassVar[int]
    MSG_FIELD_NUMBER: _ClassVar[int]
    src: InstanceId
    msg: bytes
    def __init__(self, src: _Optional[_Union[InstanceId, _Mapping]] = ..., msg: _Optional[bytes] = ...) -> None: ...

class CallReturn(_message.Message):
    __slots__ = ("type", "msg")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MSG_FIELD_NUMBER: _ClassVar[int]
    type: CallRetType
    msg: bytes
    def __init__(self, type: _Optional[_Union[CallRetType, str]] = ..., msg: _Optional[bytes] = ...) -> None: ...

class OutputEventData(_message.Message):
    __slots__ = ("originator", "alias", "msg")
    ORIGINATOR_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    MSG_FIELD_NUMBER: _ClassVar[int]
    originator: InstanceId
    alias: str
    msg: bytes
    def __init__(self, originator: _Optional[_Union[InstanceId, _Mapping]] = ..., alias: _Optional[str] = ..., msg: _Optional[bytes] = ...) -> None: ...

class OutputEventDataRaw(_message.Message):
    __slots__ = ("originator", "dst", "msg")
    ORIGINATOR_FIELD_NUMBER: _ClassVar[int]
    DST_FIELD_NUMBER: _ClassVar[int]
    MSG_FIELD_NUMBER: _ClassVar[int]
    originator: InstanceId
    dst: InstanceId
    msg: bytes
    def __init__(self, originator: _Optional[_Union[InstanceId, _Mapping]] = ..., dst: _Optional[_Union[InstanceId, _Mapping]] = ..., msg: _Optional[bytes] = ...) -> None: ...

class TelemetryLogEvent(_message.Message):
    __slots__ = ("originator", "log_level", "target", "msg")
    ORIGINATOR_FIELD_NUMBER: _ClassVar[int]
    LOG_LEVEL_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    MSG_FIELD_NUMBER: _ClassVar[int]
    originator: InstanceId
    log_level: TelemetryLogLevel
    target: str
    msg: str
    def __init__(self, originator: _Optional[_Union[InstanceId, _Mapping]] = ..., log_level: _Optional[_Union[TelemetryLogLevel, str]] = ..., target: _Optional[str] = ..., msg: _Optional[str] = ...) -> None: ...

class DelayedEventData(_message.Message):
    __slots__ = ("originator", "alias", "msg", "delay", "metadata")
    ORIGINATOR_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    MSG_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    originator: InstanceId
    alias: str
    msg: bytes
    delay: int
    metadata: EventSerializedMetadata
    def __init__(self, originator: _Optional[_Union[InstanceId, _Mapping]] = ..., alias: _Optional[str] = ..., msg: _Optional[bytes] = ..., delay: _Optional[int] = ..., metadata: _Optional[_Union[EventSerializedMetadata, _Mapping]] = ...) -> None: ...

class SyncData(_message.Message):
    __slots__ = ("originator", "serialized_state")
    ORIGINATOR_FIELD_NUMBER: _ClassVar[int]
    SERIALIZED_STATE_FIELD_NUMBER: _ClassVar[int]
    originator: InstanceId
    serialized_state: bytes
    def __init__(self, originator: _Optional[_Union[InstanceId, _Mapping]] = ..., serialized_state: _Optional[bytes] = ...) -> None: ...
