"""One job of an image, tried without broker and edge: `lamplighter try`.

The job runs through the engine, the warm pool and the execution code of a runner (`trial`). Then `rules` says which
rules of the container contract the image breaks. Only the command line imports this package. Start reading at
`trial.try_image`.
"""
