"""A network to measure on: one model of a link, obeyed on a virtual clock (`Wire`, `virtual_run`) and by a
proxy that shapes real connections (`shaped_proxy`). docs/network.md says what the model covers."""

from consort.bench.simulate.clock import (
    Processor,
    VirtualLoop,
    held_clock,
    sleep_until,
    virtual_run,
)
from consort.bench.simulate.link import Arrival, Lane, Link, trace_link
from consort.bench.simulate.precise import precise_loop, precise_run, take_precedence
from consort.bench.simulate.proxy import Shaper
from consort.bench.simulate.proxy_process import ShapedProxy, shaped_proxy
from consort.bench.simulate.trace import Trace, read_trace
from consort.bench.simulate.wire import End, Wire, connected

__all__ = [
    "Arrival",
    "End",
    "Lane",
    "Link",
    "Processor",
    "ShapedProxy",
    "Shaper",
    "Trace",
    "VirtualLoop",
    "Wire",
    "connected",
    "held_clock",
    "precise_loop",
    "precise_run",
    "read_trace",
    "shaped_proxy",
    "sleep_until",
    "take_precedence",
    "trace_link",
    "virtual_run",
]
