"""The selfcheck's program: tells what this image is while it runs one job as main.py does. See selfcheck."""

if __name__ == "__main__":
    # Here and not above: each child that the vendor spawns runs this file again, and needs none of it.
    import jobkit
    from heygem_worker import interpreter, vendor_survey
    from heygem_worker.settings import home

    interpreter.exec_vendor_python(home(), __file__)
    jobkit.run(vendor_survey.work, load=vendor_survey.load)
