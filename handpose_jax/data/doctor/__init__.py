"""The doctor: what looks wrong in a data set, without having seen a right one.

survey.py reads all records once; examine.py runs the checks of image_checks.py, record_checks.py
and hand_checks.py on them; findings.py reports. docs/data_doctor.md says what each check can and
cannot see, and how often it is right.
"""
