"""Products in categories, with labels."""

from __future__ import annotations

from django.db import models


class Category(models.Model):
    """What products belong to."""

    name = models.CharField(max_length=20)

    class Meta:
        app_label = "django_shop"


class Label(models.Model):
    """What products are labelled by."""

    name = models.CharField(max_length=20)

    class Meta:
        app_label = "django_shop"


class Product(models.Model):
    """What is sold."""

    name = models.CharField(max_length=20)
    shop = models.CharField(max_length=20, default="acme")
    category = models.ForeignKey(Category, on_delete=models.CASCADE)
    labels = models.ManyToManyField(Label, related_name="products")

    class Meta:
        app_label = "django_shop"


class Order(models.Model):
    """What is left of an order when what it refers to is deleted."""

    category = models.ForeignKey(Category, null=True, on_delete=models.SET_NULL)
    fallback = models.ForeignKey(Category, default=1, on_delete=models.SET_DEFAULT, related_name="+")
    product = models.ForeignKey(Product, null=True, on_delete=models.SET(lambda: None))
    twin = models.OneToOneField("self", null=True, on_delete=models.SET_NULL)

    class Meta:
        app_label = "django_shop"


class Book(Product):
    """A product with a table of its own beside."""

    pages = models.IntegerField(default=0)

    class Meta:
        app_label = "django_shop"


class Offer(Product):
    """A product by another name."""

    class Meta:
        app_label = "django_shop"
        proxy = True
