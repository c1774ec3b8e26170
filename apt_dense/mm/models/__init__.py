"""Backbone, necks and heads in OpenMMLab's registries."""
