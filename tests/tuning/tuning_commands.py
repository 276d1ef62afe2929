"""What the tests of the tuning command have in common."""

# Episodes of ten steps, and networks that take milliseconds.
TINY = "{width: 8, rows_per_task: 4, learning_starts: 20}"
SHORT = ("--env", "Contextual-v0", "--env-kwargs", "{horizon: 10}", "--steps", "60", "--eval-episodes", "1")
SHORT += ("--evaluations", "2", "--search-space", "[beta, sigma_prior]", "--device", "cpu")
RUN = ("run", *SHORT, "--params", TINY)
TASKS = ["swing-up", "swing-up-twin", "forward", "reversed", "light"]
