"""What a peer may use up, over all associations; ``transport`` and ``messages`` enforce it."""

from __future__ import annotations

import ipaddress
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cspine.node.settings import Limits, Network

if TYPE_CHECKING:
    from pynetdicom.association import Association

    from cspine.node.messages import GuardedDimse, StoreRequest

# A peer has this long to ask for an association, and to close when it was told to (ARTIM, PS3.8 9.1.5).
ARTIM_SECONDS = 30.0


class Budget:
    """Bytes that all associations share."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """Bytes that nobody has taken."""
        return self._left

    def take(self, size: int) -> bool:
        """Take ``size`` bytes; false, and nothing taken, when there are not so many."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._lock:
            self._left += size


@dataclass
class Guard:
    """What the classes here share.

    Attributes:
        limits: the caps.
        networks: addresses that may connect; empty for all.
        opened: told of every new association and its message provider, before it reads.
        store: takes one instance in; its status and, where that is no success, a reason of at most 64 characters.
        refused: told who was turned away before an association, and why.
        ticked: called ten times a second by the server's thread.
    """

    limits: Limits
    networks: tuple[Network, ...] = ()
    opened: Callable[[Association, GuardedDimse], None] = lambda _assoc, _dimse: None
    store: Callable[[Association, StoreRequest, memoryview], tuple[int, str]] = lambda *_: (0xA700, "nobody stores")
    refused: Callable[[str, str], None] = lambda _address, _reason: None
    ticked: Callable[[], None] = lambda: None
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = Budget(self.limits.memory_bytes)

    def admits(self, address: str) -> bool:
        """Whether ``address`` may connect at all."""
        return not self.networks or within(address, self.networks)


def within(address: str, networks: Iterable[str]) -> bool:
    """Whether an IP address lies in one of ``networks``; IPv4 in IPv6 notation counts as IPv4."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return any((mapped or ip) in ipaddress.ip_network(network) for network in networks)


def cap_memory(size: int) -> None:
    """Let this process have at most ``size`` bytes of memory that it can write to; what wants more meets MemoryError.

    RLIMIT_DATA (Linux 4.7 and later counts what is mapped, too), not RLIMIT_AS: threads set aside address space by the
    64 MiB without using it. The limit is the soft one, so that a child process can have more (``child.confine``).
    """
    if sys.platform == "linux":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (size if most == resource.RLIM_INFINITY else min(size, most), most))
