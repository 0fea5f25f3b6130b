"""What every test starts from."""

import signal

# A shell that runs the tests in the background has them ignore SIGINT, and what they start would too:
# the tests that press Ctrl-C need the signal to arrive.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
