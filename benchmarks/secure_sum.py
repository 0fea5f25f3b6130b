"""What does a masked sum cost over a plain one? Both in the same run, on numbers like a model's.

    python benchmarks/secure_sum.py [--numbers 20000000] [--repeats 3] [--out docs/secure-aggregation.md]

Plain: a site makes bytes of its float32 update; the server reads them and adds them up in float64. Masked:
a site makes keys, seals shares, codes the update, masks it, makes bytes of it, signs and reveals; the server
keeps the messages, adds up in 32 bits, takes off the masks and decodes. Seconds are processor seconds of one
thread, the least of the repeats, so that other work on the machine counts little; memory is what Python and
NumPy allocated at most besides the update itself (tracemalloc, in a run of its own). Then the streams that
could make the masks, side by side.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from page import fill

from fedglioma.nodekey import public_bytes
from fedglioma.privacy import masked_site
from fedglioma.privacy.fixed_point import BLOCK, Part, decode_parts, encode_parts
from fedglioma.privacy.masked_server import MaskedSum
from fedglioma.privacy.masked_state import SiteState
from fedglioma.privacy.masked_wire import Session

T = TypeVar("T")

SCENES = ((3, 0), (8, 0), (8, 2), (16, 5))
"""Sites, and how many of them drop out after they gave out shares."""


@dataclass
class Clock:
    """Processor seconds by who spent them."""

    spent: dict[str, float] = field(default_factory=dict)

    def run(self, who: str, work: Callable[[], T]) -> T:
        """Do some work and note its seconds."""
        start = time.process_time()
        done = work()
        self.spent[who] = self.spent.get(who, 0.0) + time.process_time() - start
        return done


def update_of(site: int, count: int) -> NDArray[np.float32]:
    """Return a made-up update of one site."""
    return np.random.default_rng(site).uniform(-0.01, 0.01, count).astype(np.float32)


def plain(clock: Clock, sites: int, count: int) -> NDArray[np.float64]:
    """Return the sum of the updates as they are."""
    total = clock.run("server", lambda: np.zeros(count))
    for i in range(sites):
        update = update_of(i, count)
        content = clock.run(f"site{i}", update.tobytes)
        clock.run("server", lambda: np.add(total, np.frombuffer(content, np.float32), out=total))  # noqa: B023
    return total


class Masked:
    """One masked sum with signatures, each step on the clock of whoever does it."""

    def __init__(self, clock: Clock, sites: int, gone: int, count: int) -> None:
        self.clock, self.count = clock, count
        self.names = [f"site{i}" for i in range(sites)]
        self.present = self.names[: sites - gone]
        self.keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in self.names}
        self.session = Session(
            subject="benchmark", parts=(Part(name="all", size=count, range=0.01),), sites=sites
        )
        self.states: dict[str, SiteState] = {}
        self.bytes: dict[str, int] = dict.fromkeys(self.names, 0)
        self.server = clock.run("server", lambda: MaskedSum(self.session))

    def prepare(self) -> None:
        """Go as far as the shares."""
        peers = {name: public_bytes(key) for name, key in self.keys.items()}
        for name in self.names:
            state, offer = self.clock.run(
                name, lambda n=name: masked_site.begin(self.session, n, key=self.keys[n], peers=peers)
            )
            self.states[name] = state
            self.bytes[name] += len(offer.model_dump_json())
            self.clock.run("server", lambda o=offer: self.server.add_offer(o))
        roster = self.clock.run("server", self.server.roster)
        for name in self.names:
            self.states[name], shares = self.clock.run(
                name, lambda n=name: masked_site.share(self.states[n], roster)
            )
            self.bytes[name] += len(shares.model_dump_json())
            self.clock.run("server", lambda s=shares: self.server.add_shares(s))

    def add(self, name: str, update: NDArray[np.float32]) -> None:
        """Mask one site's update and add it."""
        inbox = self.clock.run("server", lambda: self.server.inbox(name))

        def work() -> bytes:
            vector = encode_parts(self.session.parts, self.session.sites, {"all": update})
            self.states[name] = masked_site.mask(self.states[name], inbox, vector)
            return vector.tobytes()

        content = self.clock.run(name, work)
        self.clock.run("server", lambda: self.server.add_vector(name, np.frombuffer(content, np.uint32)))

    def finish(self) -> NDArray[np.float64]:
        """Return the sum."""
        told = self.server.survivors()
        for name in self.present:
            self.states[name], word = self.clock.run(
                name, lambda n=name: masked_site.consent(self.states[n], told, key=self.keys[n])
            )
            self.bytes[name] += len(word.model_dump_json())
            self.server.add_consent(word)
        request = self.server.request()
        for name in self.present:
            self.states[name], answer = self.clock.run(
                name, lambda n=name: masked_site.reveal(self.states[n], request)
            )
            self.bytes[name] += len(answer.model_dump_json())
            self.clock.run("server", lambda a=answer: self.server.add_revealed(a))
        total = self.clock.run("server", self.server.total)
        session, among = self.session, len(self.present)
        return self.clock.run("server", lambda: decode_parts(session.parts, session.sites, total, among))[
            "all"
        ]


def scene(sites: int, gone: int, count: int, repeats: int) -> str:
    """Return a row of the table."""
    seconds: dict[str, list[float]] = {"plain site": [], "plain server": [], "site": [], "server": []}
    for _ in range(repeats):
        clock = Clock()
        truth = plain(clock, sites - gone, count)
        seconds["plain site"].append(clock.spent["site0"])
        seconds["plain server"].append(clock.spent["server"])
        clock = Clock()
        masked = Masked(clock, sites, gone, count)
        masked.prepare()
        for i, name in enumerate(masked.present):
            masked.add(name, update_of(i, count))
        off = float(np.abs(masked.finish() - truth).max())
        seconds["site"].append(clock.spent["site0"])
        seconds["server"].append(clock.spent["server"])
    least = {who: min(each) for who, each in seconds.items()}
    together, alone = least["site"] + least["server"], least["plain site"] + least["plain server"]
    cells = (
        f"{sites} | {gone} | {least['plain site']:.3f} | {least['site']:.3f}",
        f"{least['plain server']:.2f} | {least['server']:.2f}",
        f"{together / alone:.1f} | {off:.1e} | {masked.bytes['site0'] / 1e3:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def memory(sites: int, count: int) -> tuple[float, float]:
    """Return the most megabytes that a site needs besides its update, and the server besides what arrives."""
    masked = Masked(Clock(), sites, 0, count)
    masked.prepare()
    update = update_of(0, count)
    inbox = masked.server.inbox("site0")
    tracemalloc.start()
    vector = encode_parts(masked.session.parts, sites, {"all": update})
    masked_site.mask(masked.states["site0"], inbox, vector)
    site = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    masked.server.add_vector("site0", vector)
    server = tracemalloc.get_traced_memory()[1] - before + masked.server.sum.nbytes
    tracemalloc.stop()
    return site / 1e6, server / 1e6


def streams(count: int) -> str:
    """Return the speed of the streams that were tried, added to a vector, in GB/s."""
    kinds = {
        "AES-256-CTR": lambda: Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))),
        "AES-128-CTR": lambda: Cipher(algorithms.AES(bytes(16)), modes.CTR(bytes(16))),
        "ChaCha20": lambda: Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), None),
    }
    vector, room = np.zeros(count, np.uint32), bytearray(4 * BLOCK)
    stream, zeros = np.frombuffer(room, np.uint32), bytes(4 * BLOCK)
    told = []
    for name, kind in kinds.items():
        best = np.inf
        for _ in range(3):
            encryptor, start = kind().encryptor(), time.process_time()
            for begin in range(0, count - BLOCK, BLOCK):
                encryptor.update_into(zeros, room)
                vector[begin : begin + BLOCK] += stream
            best = min(best, time.process_time() - start)
        told.append(f"{name} {4 * count / best / 1e9:.1f}")
    return ", ".join(told)


def main() -> None:
    """Measure, print, and write the table where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--numbers", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="page whose table is replaced, docs/secure-aggregation.md")
    asked = parser.parse_args()
    site, server = memory(8, asked.numbers)
    lines = [
        f"{asked.numbers / 1e6:g} million numbers ({4 * asked.numbers / 1e6:g} MB); processor seconds of one "
        f"thread, the least of {asked.repeats}; with signatures.",
        "",
        "| sites | drop out | plain: a site | masked: a site | plain: server | masked: server | ratio, both "
        "ends | largest error | kB besides the vector |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for sites, gone in SCENES:
        lines.append(scene(sites, gone, asked.numbers, asked.repeats))
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Memory with 8 sites: a site needs {site:.0f} MB besides its update, of them "
        f"{4 * asked.numbers / 1e6:.0f} for the vector that it sends; the server {server:.0f} MB besides the "
        "vector that arrives.",
        "",
        f"Streams that could be masks, made and added, in GB/s: {streams(asked.numbers)}.",
    ]
    text = "\n".join(lines)
    if asked.out:
        fill(asked.out, "table of benchmarks/secure_sum.py", text)
    print(text)


if __name__ == "__main__":
    main()
