"""The selfcheck's program: tells what this image is while it runs one job as main.py does. See selfcheck."""

if __name__ == "__main__":
    # Here and not above: each child that the vendor spawns runs this file again, and needs none of it.
    import jobkit
    from heygem_worker import facts, interpreter
    from heygem_worker.settings import home

    interpreter.become(home(), __file__)
    jobkit.run(facts.work, load=facts.load)
