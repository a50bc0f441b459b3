"""What every engine must make true, as functions of a way to open a sandbox.

An engine's tests run each of :data:`CONTRACT` on both backends. ``open_box`` takes the changes to a spec whose image
has a POSIX shell with the usual small programs (busybox suffices), and whose user may write to ``/tmp``.
"""

from __future__ import annotations

from sandbox.testing.contract import commands, lifetimes, output, transfers
from sandbox.testing.contract.base import Behaviour, OpenBox

__all__ = ["CONTRACT", "Behaviour", "OpenBox"]

CONTRACT: tuple[Behaviour, ...] = (
    commands.an_exit_code_comes_back,
    commands.a_signal_is_told,
    commands.each_call_has_a_fresh_shell,
    commands.an_argv_needs_no_shell,
    commands.a_call_inherits_environment_and_directory,
    commands.a_call_runs_as_its_user,
    commands.an_unknown_user_is_refused,
    commands.a_missing_directory_is_refused,
    commands.what_no_process_takes_is_refused_before_it_is_sent,
    commands.a_long_command_runs,
    output.streams_are_kept_apart,
    output.merged_streams_keep_their_order,
    output.truncation_is_honest,
    output.a_flood_is_bounded,
    output.output_can_be_watched,
    output.a_slow_watcher_stalls_its_own_command_only,
    output.a_failing_watcher_ends_its_command,
    output.output_can_be_iterated,
    output.stdin_is_sent_and_closed,
    output.stdin_that_nobody_reads_holds_nothing_up,
    output.a_failing_source_of_stdin_is_its_callers,
    lifetimes.a_timeout_kills_and_spares_the_sandbox,
    lifetimes.a_cancelled_call_is_dead_when_its_caller_goes_on,
    lifetimes.calls_run_side_by_side,
    lifetimes.a_background_child_delays_nothing,
    lifetimes.a_reset_kills_everything,
    lifetimes.a_closed_sandbox_says_so,
    lifetimes.an_exception_of_the_block_comes_out_as_it_is,
    transfers.files_go_in_and_come_out,
    transfers.relative_paths_begin_at_the_working_directory,
    transfers.file_errors_are_pythons_own,
    transfers.file_calls_are_the_users,
    transfers.trees_go_in_and_come_out,
)
"""Each is named after what it says of a sandbox."""
