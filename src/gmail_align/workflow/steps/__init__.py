"""The steps of the pipeline: what each reads, what it is called, and the stage that makes it."""
