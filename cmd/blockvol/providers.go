package main

import (
	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/aws"
	"github.com/blockvol/blockvol/providers/digitalocean"
	"github.com/blockvol/blockvol/providers/hetzner"
	"github.com/blockvol/blockvol/providers/linode"
	"github.com/blockvol/blockvol/providers/local"
	"github.com/blockvol/blockvol/providers/openstack"
)

// constructors makes a provider from the environment, by the name that PROVIDER gives it. None calls its cloud.
var constructors = map[string]func(getenv func(string) string, node, cluster string, log logrus.FieldLogger) (providers.Provider, error){
	"aws":          aws.FromEnv,
	"digitalocean": digitalocean.FromEnv,
	"hetzner":      hetzner.FromEnv,
	"linode":       linode.FromEnv,
	"openstack":    openstack.FromEnv,
	"local":        local.FromEnv,
}
