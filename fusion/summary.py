"""The Summary: what leaves a node, what it claims, and its bytes.

Wire form (version 1):

    "tidings-summary-1\\n" | header length (4 bytes, big-endian) | header (canonical JSON) | one zstd frame

The header holds the task id, the kind, the claim and, for each block in the order of the kind's layout,
[sigma, step]. The frame holds the blocks in that order: entries in whole multiples of `step`, zigzagged, as byte
planes (the lowest byte of every entry, then the next), as many planes as the largest sum that any release can have
needs. So header and frame before compression have a length that follows from task and claim alone; what is left to
vary, by compression, is a function of the noised numbers, hence as private as they are.
`step` is the power of two at or below sigma / 2: rounding after the noise is free for privacy, adds at most 2.1 % to
the variance (0.5 % to 2.1 %, which no accuracy shows), and leaves three to four bits an entry.

A block that is made from noisy numbers alone (the weights of a model trained with noise) states a sigma of 0 and has a
fixed step and a largest entry, both of which its kind's layout gives; other numbers were noised to get there, which the
claim covers and nobody sends.

`Summary.from_bytes` trusts nothing: it recomputes sigma from the claim, bounds what it inflates by what the
task can hold, and raises SummaryError for everything that does not fit. The claim itself is attested, not
proved.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.accounting import MAX_ENTRIES, MIN_SIGMA, mu_of, noise_scale
from fusion.errors import BudgetError, SummaryError
from fusion.summaries import UNIT, BlockLayout, Blocks, kind_of
from fusion.task import Task, dimension

MECHANISM = "discrete-gaussian-1"
ADJACENCY = "add-or-remove-one"
MAX_SUMMARY_BYTES = 16 * 2**20
MIN_EPSILON = 1e-3  # keeps sigma far inside the range in which the noise is exact
MAX_VALUE = 2**62 + 2**59  # the most rows that a release takes, and any noise that can happen
MAX_POSITION = 2**53  # whole numbers that JSON keeps exactly everywhere
MAX_HEADER_BYTES = 4_096
SIGMA_TOLERANCE = 1e-9  # the error functions of two machines may differ in their last digits

_MAGIC = b"tidings-summary-1\n"
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Claim:
    """What the origin attests about its release; lying harms only the privacy of the origin's own data."""

    epsilon: float
    delta: float
    mechanism: str
    sensitivity: float
    adjacency: str
    unit: str
    ledger_position: int  # 0 for a summary made in process, which never leaves it


@dataclass(frozen=True)
class Summary:
    """A noisy summary of one partner's rows."""

    task_id: bytes
    kind: str
    claim: Claim
    blocks: Blocks  # per block, int64 entries in units of that block's step
    steps: dict[str, int]  # powers of two, in units of 2^-32
    sigmas: dict[str, int]  # deviation of the noise, in units of 2^-32; 0 for an exact summary and for derived blocks
    limits: dict[str, int] = field(default_factory=dict)  # of derived blocks: the largest magnitude, in units of 2^-32

    def sums(self) -> Blocks:
        """The entries in units of 2^-32."""
        return {name: values * self.steps[name] for name, values in self.blocks.items()}

    def to_bytes(self) -> bytes:
        """The wire form; SummaryError for a summary that no ledger was charged for."""
        if not math.isfinite(self.claim.epsilon) or self.claim.ledger_position < 1:
            raise SummaryError("a summary that no ledger was charged for never leaves its process; publish instead")
        data = _encode(self)
        if len(data) > MAX_SUMMARY_BYTES:
            raise SummaryError(f"the summary has over {MAX_SUMMARY_BYTES} bytes; name fewer columns in the task")
        return data

    @classmethod
    def from_bytes(cls, data: bytes, task: Task) -> Summary:
        """The summary in `data`, checked against `task`; SummaryError says what does not fit."""
        return Decoder(task).read(data)


@dataclass(frozen=True)
class Plan:
    """All that can be said of a release before data is touched: its shape, its noise, its cost."""

    task_id: bytes
    kind: str
    epsilon: float
    delta: float
    dimension: int
    entries: int
    sensitivity: float
    sigma: float  # deviation on the diagonal of G, where one row adds at most 1
    mu: float  # what the ledger is charged: mu^2
    estimated_bytes: int
    unit: str  # whom it protects: a record, or a person
    layout: tuple[BlockLayout, ...]
    sigmas: dict[str, int]  # per block, in units of 2^-32; 0 for one derived from others

    @property
    def sent(self) -> tuple[BlockLayout, ...]:
        """The blocks that leave."""
        return tuple(block for block in self.layout if block.sent)


def plan(task: Task, epsilon: float) -> Plan:
    """The release of `task` at `epsilon`; BudgetError for an epsilon that the task does not allow."""
    allowed, epsilon = task.privacy.max_epsilon, float(epsilon)  # as the claim will state it
    if not 0 < epsilon <= allowed:
        raise BudgetError(f"epsilon must be over 0 and at most {allowed:g}, the maximum of this task; choose again")
    if epsilon < MIN_EPSILON:
        raise BudgetError(f"epsilon below {MIN_EPSILON:g} leaves nothing but noise; choose a larger one")
    kind = kind_of(task)
    layout = kind.layout(task)
    sensitivity = kind.sensitivity(task)
    sigma = noise_scale(sensitivity, epsilon, task.privacy.delta)
    sigmas = {one.name: 0 if one.is_derived else math.ceil(sigma * UNIT / one.noise_divisor) for one in layout}
    noisy = [block for block in layout if not block.is_derived]
    if sum(one.entries for one in noisy) > MAX_ENTRIES or min(sigmas[one.name] for one in noisy) < MIN_SIGMA:
        raise BudgetError("this release lies outside the range in which its noise is proved; name fewer columns")
    return Plan(
        task_id=task.id,
        kind=kind.name,
        epsilon=epsilon,
        delta=task.privacy.delta,
        dimension=dimension(task),
        entries=sum(block.entries for block in layout if block.sent),
        sensitivity=sensitivity,
        sigma=sigma,
        mu=mu_of(epsilon, task.privacy.delta),
        estimated_bytes=_estimated_bytes(layout, sigmas),
        unit=task.privacy.unit,
        layout=layout,
        sigmas=sigmas,
    )


def step_of(sigma: int) -> int:
    """The largest power of two that is at most sigma / 2."""
    return 1 << max(0, sigma.bit_length() - 2)


def step_for(block: BlockLayout, sigma: int) -> int:
    """The step in which a block is sent: its own, or what its noise allows."""
    return block.step or step_of(sigma)


def limits_of(layout: tuple[BlockLayout, ...]) -> dict[str, int]:
    """Of the derived blocks."""
    return {block.name: block.limit for block in layout if block.is_derived}


def limit_for(block: BlockLayout) -> int:
    """The largest magnitude of an entry, in units of 2^-32."""
    return block.limit or MAX_VALUE


def _estimated_bytes(layout: tuple[BlockLayout, ...], sigmas: dict[str, int]) -> int:
    """Entropy of the noise in steps, one bit an entry for the signal, and the header; a derived block in full."""
    bits = 0.0
    for block in (one for one in layout if one.sent):
        sigma = sigmas[block.name]
        if block.is_derived:
            bits += block.entries * 8 * planes_of(block.step, block.limit)
        else:
            bits += block.entries * (1 + math.log2(math.sqrt(2 * math.pi * math.e) * sigma / step_of(sigma)))
    return 600 + math.ceil(bits / 8)


# --- bytes out ----------------------------------------------------------------------------------------------


def _encode(summary: Summary) -> bytes:
    import zstandard

    block_headers = []
    planes = []
    for name, values in summary.blocks.items():
        step = summary.steps[name]
        block_headers.append([summary.sigmas[name], step])
        planes.append(_to_planes(_zigzag(values), planes_of(step, summary.limits.get(name, MAX_VALUE))))
    header = _header_bytes(summary.task_id, summary.kind, summary.claim, block_headers)
    frame = zstandard.ZstdCompressor(level=9).compress(b"".join(planes))
    return _MAGIC + _LENGTH.pack(len(header)) + header + frame


def _header_bytes(task_id: bytes, kind: str, claim: Claim, blocks: list[list[int]]) -> bytes:
    content = {"task": task_id.hex(), "kind": kind, "claim": asdict(claim), "blocks": blocks}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def planes_of(step: int, limit: int = MAX_VALUE) -> int:
    """Bytes that hold every zigzagged multiple of `step` up to `limit`."""
    return ((2 * (limit // step) + 1).bit_length() + 7) // 8


def _zigzag(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """0, -1, 1, -2, … -> 0, 1, 2, 3, …: small magnitudes get small codes."""
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def _unzigzag(codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (codes >> np.uint64(1)).view(np.int64) ^ -(codes & np.uint64(1)).view(np.int64)


def _to_planes(codes: NDArray[np.uint64], count: int) -> bytes:
    octets = codes.astype("<u8").view(np.uint8).reshape(-1, 8)
    return octets[:, :count].T.tobytes()


def _from_planes(content: bytes, entries: int, count: int) -> NDArray[np.uint64]:
    planes = np.frombuffer(content, dtype=np.uint8).reshape(count, entries)
    codes: NDArray[np.uint64] = planes[0].astype(np.uint64)
    for place in range(1, count):
        if planes[place].any():  # the high ones hold nothing but for sums of millions of rows
            codes |= planes[place].astype(np.uint64) << np.uint64(8 * place)
    return codes


# --- bytes in -----------------------------------------------------------------------------------------------


class Decoder:
    """Reads the summaries of one task: what follows from task and epsilon alone is worked out once for all of them."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._task_id = task.id
        self._plans: dict[float, Plan] = {}

    def read(self, data: bytes) -> Summary:
        """Check in order: form, task, claim, noise, size; only then inflate. SummaryError says what does not fit."""
        header, frame = _split(data)
        if header["task"] != self._task_id.hex() or header["kind"] != self._task.summary:
            raise SummaryError("this summary belongs to another task; ignore it")
        claim = _read_claim(header["claim"])
        planned = self._replan(claim)
        sizes = _check_blocks(header["blocks"], planned)
        content = _inflate(frame, sum(sizes))
        blocks: Blocks = {}
        start = 0
        for block, size, (_sigma, step) in zip(planned.sent, sizes, header["blocks"], strict=True):
            blocks[block.name] = _read_block(content[start : start + size], block, step)
            start += size
        names = [block.name for block in planned.sent]
        sigmas = {name: stated[0] for name, stated in zip(names, header["blocks"], strict=True)}
        steps = {name: stated[1] for name, stated in zip(names, header["blocks"], strict=True)}
        return Summary(planned.task_id, planned.kind, claim, blocks, steps, sigmas, limits_of(planned.layout))

    def _replan(self, claim: Claim) -> Plan:
        """The release that the claim describes; every field of the claim must be what that release states."""
        planned = self._plans.get(claim.epsilon)
        if planned is None:
            try:
                planned = plan(self._task, claim.epsilon)
            except BudgetError:
                raise SummaryError("the summary claims an epsilon that its task does not allow; ignore it") from None
        if claim != claim_of(planned, claim.ledger_position):
            raise SummaryError("the privacy claim of the summary is not that of its task and mechanism; ignore it")
        self._plans = {claim.epsilon: planned}  # the latest: a peer cannot make this grow
        return planned


def _read_block(content: bytes, block: BlockLayout, step: int) -> NDArray[np.int64]:
    values = _unzigzag(_from_planes(content, block.entries, planes_of(step, limit_for(block))))
    limit = limit_for(block) // step
    if values.size and (values.min() < -limit or values.max() > limit):
        raise SummaryError("the summary holds a sum that no release can reach; ignore it")
    return values


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header fields (of the right names, values not yet checked) and the compressed frame."""
    start = len(_MAGIC) + _LENGTH.size
    if len(data) > MAX_SUMMARY_BYTES or len(data) < start or not data.startswith(_MAGIC):
        raise SummaryError("these bytes are not a summary of this version; update the older of the two nodes")
    (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
    raw, frame = data[start : start + length], data[start + length :]
    if length > MAX_HEADER_BYTES or len(raw) < length:
        raise SummaryError("the header of the summary is cut off or too long; ask for it again")
    try:
        header = json.loads(raw.decode("ascii"))
        canonical = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (ValueError, RecursionError):
        raise SummaryError("the header of the summary is not canonical JSON; ignore it") from None
    if canonical != raw or not isinstance(header, dict) or set(header) != {"task", "kind", "claim", "blocks"}:
        raise SummaryError("the header of the summary is not in its canonical form; ignore it")
    return header, frame


def _read_claim(raw: object) -> Claim:
    types = {
        "epsilon": float,
        "delta": float,
        "mechanism": str,
        "sensitivity": float,
        "adjacency": str,
        "unit": str,
        "ledger_position": int,
    }
    if not isinstance(raw, dict) or {key: type(value) for key, value in raw.items()} != types:
        raise SummaryError("the privacy claim of the summary is incomplete; ignore it")
    claim = Claim(**raw)
    if not 1 <= claim.ledger_position <= MAX_POSITION:
        raise SummaryError("the summary claims a ledger position that cannot be; ignore it")
    return claim


def claim_of(planned: Plan, ledger_position: int) -> Claim:
    """The claim that goes with a release as planned."""
    return Claim(
        epsilon=planned.epsilon,
        delta=planned.delta,
        mechanism=MECHANISM,
        sensitivity=planned.sensitivity,
        adjacency=ADJACENCY,
        unit=planned.unit,
        ledger_position=ledger_position,
    )


def _check_blocks(stated: object, planned: Plan) -> list[int]:
    """Bytes of each block once inflated; sigma and step must be those of the planned release."""
    if not isinstance(stated, list) or len(stated) != len(planned.sent):
        raise SummaryError("the summary has other blocks than its task; ignore it")
    sizes = []
    for block, entry in zip(planned.sent, stated, strict=True):
        if not isinstance(entry, list) or [type(number) for number in entry] != [int, int]:
            raise SummaryError("the header of the summary is malformed; ignore it")
        sigma, step = entry
        expected = planned.sigmas[block.name]
        tolerance = 0 if block.is_derived else 1 + SIGMA_TOLERANCE * expected
        if abs(sigma - expected) > tolerance or step != step_for(block, sigma):
            raise SummaryError("the noise of the summary is not what its epsilon calls for; ignore it")
        sizes.append(block.entries * planes_of(step, limit_for(block)))
    return sizes


def _inflate(frame: bytes, expected_bytes: int) -> bytes:
    """Exactly `expected_bytes`; the size that the frame states is checked before anything is allocated."""
    import zstandard

    damaged = SummaryError("the body of the summary is damaged; ask for it again")
    try:
        if zstandard.get_frame_parameters(frame).content_size != expected_bytes:
            raise damaged
        content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=expected_bytes, allow_extra_data=False)
    except zstandard.ZstdError:
        raise damaged from None
    if len(content) != expected_bytes:
        raise damaged
    return content
