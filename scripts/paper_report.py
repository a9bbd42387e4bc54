def write(done, output):
    pass
