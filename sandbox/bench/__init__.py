"""``python -m sandbox.bench``: the project's figures on this host, each beside what it is compared with.

Both sides of a comparison are measured in the same run and in turns (A B A B), so that a busy or slow host changes both
alike and the ratio means something everywhere. A figure that this host can't tell (the CPU time of an engine behind
another address, for one) is "n/a" with its reason, and never a guess.
"""
