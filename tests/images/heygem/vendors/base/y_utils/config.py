"""Plays the reader of config/config.ini, which lies below the working folder; the defaults are the vendor's."""

import configparser


class GlobalConfig:
    def __init__(self):
        config = configparser.ConfigParser()
        config.read("config/config.ini", encoding="utf-8")

        def of(section, key, default):
            return config.get(section, key) if config.has_option(section, key) else default

        self.log_dir = of("log", "log_dir", "./log")
        self.log_file = of("log", "log_file", "dh.log")
        self.server_port = int(of("http_server", "server_port", 8383))
        self.temp_dir = of("temp", "temp_dir", "./")
        self.result_dir = of("result", "result_dir", "./result")
        self.register_enable = int(of("register", "enable", 0))
        self.chaofen_before = of("model", "chaofen_before", 1)  # "0" stays a text, as with the vendor
        self.blur_threshold = float(of("model", "blur_threshold", 0.3))
        self.watermark_path = of("watermark", "watermark_path", None)
        self.digital_auth_path = of("digital_human_authentication", "digital_auth_path", None)
