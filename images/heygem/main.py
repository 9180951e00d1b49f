"""The image's program: run one HeyGem job and exit."""

if __name__ == "__main__":
    # Not at the top: each child that the vendor spawns runs this file again and needs none of these imports.
    import jobkit
    from heygem_worker import interpreter
    from heygem_worker.settings import home
    from heygem_worker.work import load, work

    interpreter.exec_vendor_python(home(), __file__)
    jobkit.run(work, load=load)
