"""The image's program: one HeyGem job, then gone."""

if __name__ == "__main__":
    # Here and not above: each child that the vendor spawns runs this file again, and needs none of it.
    import jobkit
    from heygem_worker import interpreter
    from heygem_worker.settings import home
    from heygem_worker.work import load, work

    interpreter.exec_vendor_python(home(), __file__)
    jobkit.run(work, load=load)
