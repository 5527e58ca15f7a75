"""Run work that may hang, crash or need much memory in a process of its own, and a deployed model where this pack is blocked.

``python -m mmext.analysis.isolated HOST ...`` is the process where it is blocked. It reads lines ``SECONDS FOLDER`` and
answers each with a line, see :func:`compare`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmext.errors import reason
from mmext.export import max_relative_error, outputs_of

__all__ = ['Reloader', 'compare', 'limited', 'main', 'preload']


def preload(hosts: Sequence[str]) -> None:
    """Import hosts whole, so that the processes that are split off need not."""
    for host in hosts:
        importlib.import_module(f'{host}.utils').register_all_modules(init_default_scope=False)


def limited(work: Callable[[], None], seconds: int, log: Path, clock: int | None = None) -> str:
    """Run ``work`` in a copy of this process, which must not have computed anything with several threads.

    Args:
        work: What to run. What it finds out it writes into a file.
        seconds: After so much time of the processor the copy is ended: what else the machine does has no say in that.
        log: File for what it prints.
        clock: After so many seconds on the clock it is ended too; by default ten times ``seconds``.

    Returns:
        Why it did not come to its end, as one sentence, else an empty text.
    """
    clock = clock or 10 * seconds
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            # Both end the process even inside of native code.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.alarm(clock)
            sys.stdout = sys.stderr = file = open(log, 'a', buffering=1)  # noqa: SIM115  ends with the process
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            work()
            code = 0
        except BaseException:  # whatever it is, this copy must not return into its caller
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == -signal.SIGPROF:
        return f'it did not end within {seconds} s of the processor'
    if status == -signal.SIGALRM:
        return f'it did not end within {clock} s'
    if status < 0:
        return f'its process was ended by signal {-status}'
    return 'its process failed by an error of its own' if status else ''


def compare(folder: Path, tolerance: float = 1e-4) -> str:
    """Build ``deployed.py`` by the runner, load ``deployed.pth``, and compare its outputs with ``expected.pt``.

    Returns:
        An empty text if they are equal. Else one sentence that says why not, and whether the runner of ``plain.py``, the
        config before any change, fails too.
    """
    expected = torch.load(folder / 'expected.pt', weights_only=True)

    def outputs(name: str) -> list[torch.Tensor]:
        cfg = Config.fromfile(folder / f'{name}.py')
        cfg.work_dir, cfg.launcher = str(folder / name), 'none'
        model = Runner.from_cfg(cfg).model
        if (weights := folder / f'{name}.pth').is_file():
            model.load_state_dict(torch.load(weights, weights_only=True)['state_dict'])
        model.eval()
        return outputs_of(model, expected['inputs'])

    try:
        error = max_relative_error(expected['outputs'], outputs('deployed'))
    except Exception as failure:  # runners, hooks and models of the hosts raise anything
        try:
            outputs('plain')
        except Exception:
            return f'{reason(failure)} (so does the plain config)'
        return reason(failure)
    return '' if error <= tolerance else f'the outputs differ by {error:.1e} relative'


class Reloader:
    """The process in which this pack is blocked; it starts at the first deployed config.

    Args:
        hosts: What it imports beforehand.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = hosts
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, folder: Path, seconds: int) -> str:
        """Return why the deployed config in ``folder`` does not compute the same; empty if it does."""
        if self.process is None:
            command = [sys.executable, '-m', 'mmext.analysis.isolated', *self.hosts]
            with open(folder.parent / 'reloader.txt', 'w') as log:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f'{seconds} {folder}\n')
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return answer.strip() if answer else 'the process where mmext is blocked has ended'

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.communicate()


def main(hosts: Sequence[str]) -> None:
    """Block this pack, import the hosts, and answer the lines that come in."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # hosts print while they are imported
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmext']:
        if name == 'mmext.registry':
            raise RuntimeError('mmext.registry is imported already, so that its components could be built')
        del sys.modules[name]
    sys.modules['mmext'] = None  # type: ignore[assignment]
    preload(hosts)
    for line in sys.stdin:
        seconds, folder = line.rstrip('\n').split(' ', 1)
        written = Path(folder) / 'reloaded.txt'

        def work(folder: str = folder, written: Path = written) -> None:
            written.write_text(compare(Path(folder)))

        ended = limited(work, int(seconds), Path(folder) / 'log.txt')
        text = ended or written.read_text()
        answers.write(' '.join(text.split()) + '\n')
        answers.flush()


if __name__ == '__main__':
    main(sys.argv[1:])
