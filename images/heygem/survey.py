"""The selfcheck's program: run one job as main.py does, and print facts about the image. See selfcheck."""

if __name__ == "__main__":
    # Not at the top: each child that the vendor spawns runs this file again and needs none of these imports.
    import jobkit
    from heygem_worker import interpreter, vendor_survey
    from heygem_worker.settings import home

    interpreter.exec_vendor_python(home(), __file__)
    jobkit.run(vendor_survey.work, load=vendor_survey.load)
