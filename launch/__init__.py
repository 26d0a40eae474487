"""The command line: flags, environment, exit codes, and what each verb starts. Nothing else imports this package."""
