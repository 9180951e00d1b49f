"""The switch: a host wakes because of a job and goes off when it is done (DESIGN 6).

`tables` is the law, `law` walks it, `facts` is what it judges by; `sight` gathers that, `controller` applies it;
`drivers` press the button.
"""
