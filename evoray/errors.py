"""What can go wrong, and who has to act: `UserError` (exit code 2) and `EvorayError` (exit code 1), one kind of which,
`DeviceFullError`, smaller passes may mend."""


class EvorayError(Exception):
    """A failure that is not the user's mistake. One line; the command line exits with `exit_code`."""

    exit_code = 1


class UserError(EvorayError):
    """A user's mistake. Its one line names the value, the limit and the remedy."""

    exit_code = 2


class DeviceFullError(EvorayError):
    """A device has no room for a pass, whatever else gives way."""
