package main

import (
	"io"
	"os"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/writer"
)

// newLogger writes errors to stderr, which an engine takes into its own log as errors, and the rest to stdout, which it
// takes as information. Text bears no time, since the engine and the journal put one before each line.
func newLogger(s settings) *logrus.Logger {
	log := logrus.New()
	log.SetLevel(s.logLevel)
	log.SetOutput(io.Discard)
	log.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	if s.logJSON {
		log.SetFormatter(&logrus.JSONFormatter{})
	}
	log.AddHook(&writer.Hook{Writer: os.Stderr, LogLevels: logrus.AllLevels[:logrus.ErrorLevel+1]})
	log.AddHook(&writer.Hook{Writer: os.Stdout, LogLevels: logrus.AllLevels[logrus.ErrorLevel+1:]})
	return log
}
